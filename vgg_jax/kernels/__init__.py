"""Forms of operations that are fast on one platform, in programs for it alone."""
