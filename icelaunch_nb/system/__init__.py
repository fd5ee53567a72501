"""What every process of the package uses of the operating system and CPython."""
