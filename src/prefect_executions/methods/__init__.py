"""What a Method is: an OGC process description, the code or scripts behind it, and the rules of its declaration.

A descriptor Method has modules of its own, which are not loaded for others:
`reading` makes a Method of a file, `asking` its form and the values of its
inputs, `scripts` what is run, `wishes` what the infrastructure is asked for.
"""
