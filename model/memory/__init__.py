"""The memory kinds: a package a kind, with `spec.py` (its configuration and costs, without torch) and `module.py`.

`registry.py` finds them, those of other packages too; `spec.py` and `interface.py` are all that the rest knows of them.
"""
