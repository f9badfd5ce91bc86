"""`python -m kerasnorm`."""

from kerasnorm.cli import main

if __name__ == "__main__":
    main()
