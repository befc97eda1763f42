"""Other libraries: each module is imported only when it is asked for, and names the extra it needs."""
