"""Times jaxsample against JAX's own operations and the stack that code bases write on top of them.

`python -m bench` prints the tables, `python -m bench --report` writes the whole report, and
`python -m bench --help` tells what else it can do.
"""
