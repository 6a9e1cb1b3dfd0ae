# SPDX-License-Identifier: Apache-2.0
"""Per-example norms and the clipped sum in one backward pass.

``taps`` is where the book-keeper listens · ``batch`` is what it hears · ``linear``, ``embedding``, ``normalisation``,
``convolution``, ``attention`` and ``recurrent`` say what that means for the parameters of a layer, ``shared`` for what
the whole batch shares, ``fallback`` for any other module · ``rules`` chooses · ``factors`` writes uses down,
``gradients`` takes their norms and weighted sums, ``norms`` one norm per example · ``bookkeeper`` keeps the order.
"""

from privguard.training.bookkeeping.bookkeeper import BookKeeper as BookKeeper
