"""The command `python -m recipes.benchmark`; its functions are in a module that other processes can import."""

from recipes.benchmark.costs import main

if __name__ == "__main__":
    main()
