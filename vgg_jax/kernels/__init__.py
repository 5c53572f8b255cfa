"""Forms of operations that are fast on one platform, chosen where XLA compiles for it."""
