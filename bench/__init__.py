"""Times jaxsample against JAX's own operations and against the stack that code bases build on them.

`python -m bench` prints the tables, `python -m bench --report` writes the whole report, and `python
-m bench --help` lists the other options.
"""
