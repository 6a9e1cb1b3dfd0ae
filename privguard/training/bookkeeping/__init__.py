"""Per-example norms and the clipped sum in one backward pass.

``taps`` listens at modules · ``call`` is what was heard · one file per group of layers says what it means for their
parameters (``linear``, ``embedding``, ``normalisation``, ``convolution``) · ``factors`` takes norms and weighted sums ·
``rules`` chooses · ``bookkeeper`` keeps the order.
"""

from privguard.training.bookkeeping.bookkeeper import BookKeeper as BookKeeper
