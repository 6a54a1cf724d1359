"""`python -m dynamic_workflows.cli`, for where the script is not on PATH."""

from .app import main

if __name__ == "__main__":
    main()
