"""The command line on the toy world, without pictures: `python toy_cli.py run ...`."""

import signal

import harness.run
from harness.cli import main

if __name__ == "__main__":
    # A shell starts background jobs with SIGINT ignored, and children inherit that: tests must not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    harness.run.DEFAULT_WORLD = "toy_world:WORLD"
    harness.run.write_reports = lambda console, plan, store, records: console.print(f"{len(records)} rows")
    main()
