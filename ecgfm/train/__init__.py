"""The training system: settings of a run, the loop, the engine, checkpoints and logs."""
