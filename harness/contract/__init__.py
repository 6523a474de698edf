"""The contract of a method as a suite of rules that built-in and third-party methods pass alike.

``check.check_method`` runs it. Each rule is a function in one of the ``*_rules`` modules, judging what short trainings
on synthetic scenes have shown: trainings by the same machinery that runs an experiment, watched from outside.
"""
