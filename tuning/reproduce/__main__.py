"""`python -m tuning.reproduce`."""

from tuning.reproduce.reproduce import main

if __name__ == "__main__":
    main()
