"""`python -m dggraph`, for launchers such as torchrun that start modules."""

from dggraph.cli.main import main

if __name__ == "__main__":
    main()
