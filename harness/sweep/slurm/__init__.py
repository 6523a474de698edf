"""A sweep on a SLURM cluster.

What is promised to a user, and which part keeps the promise:

- No GPU is held by a job that only waits: a job depends on the job of the step it builds on (``chains``, ``submit``).
  Locks alone would keep the steps from being trained twice, but jobs would wait for them on their nodes.
- ``array_parallelism`` holds for the whole sweep: all jobs are one array (``chains`` says why that needs a hold).
- A time limit, a pre-emption or the death of a node costs little: the job saves a checkpoint when SLURM warns it, and
  puts itself back into the queue (``job``). A job that runs twice trains nothing twice: steps are locked while they are
  trained, and stored once (``harness/runs``).
- The sweep's own process may end at any time, and the same command finds its jobs again (``notes``, ``submit``).
- One `squeue` per ``poll_s`` seconds is all that a sweep asks of the controller (``watch``). How far a training is,
  and why it failed, is read from small files that the jobs write (``notes``).
"""
