"""Reading marked text: detection, messages, tracing, and the marks of other tools."""
