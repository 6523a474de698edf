"""Tables, plots and pages made from the store and the ledger alone.

torch is never imported here: reports must start fast, also on a machine without it, and ``tables.processes`` may copy
this process only while torch has started no threads in it.
"""
