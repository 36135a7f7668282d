"""The native engine of portable arithmetic: the same definitions in C++, built where there is a compiler, and never needed."""
