"""`python -m ifam.cli`."""

from ifam.cli.main import main

if __name__ == "__main__":
    main()
