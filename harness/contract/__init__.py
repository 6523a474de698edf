"""The contract of a method as a suite of rules that built-in and third-party methods pass alike.

``check.check_method`` runs it; ``check.RULES`` lists the rules, each a function in a ``*_rules`` module. To find the
code behind a message, search the ``*_rules`` modules for the rule's name with underscores.

A rule examines short trainings on synthetic scenes:

- ``bench``: the main training, its repetitions (interrupted, or with scrambled labels), and other numbers of classes;
- ``probe``: a phase trained again on chosen batches, in another precision, in micro-batches or with renumbered classes.

All are trained by the code that runs an experiment, with the method inside a ``recorder``, which fills a
``recorded.RecordedTraining``; ``diagnosis`` says what is wrong with a recorded call or a failed training.
"""
