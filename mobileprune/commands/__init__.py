"""The commands of the command line, one room each: parse, call, print. Heavy imports stay inside the functions."""
