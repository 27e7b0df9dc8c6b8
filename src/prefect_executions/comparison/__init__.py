"""How two executions differ, and how far the outputs of one agree with those of another: values in, values out."""
