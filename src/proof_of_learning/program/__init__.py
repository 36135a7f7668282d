"""Sealed steps: a task as data (ADR 0032).

``document`` is the format, ``operations`` the closed list, ``checking`` what is refused before anything runs, ``interpreter`` what
runs it, ``sealed`` makes a task of a program, ``tracing`` and ``recording`` a program of a task, ``folder`` has the samples as plain
arrays, ``show`` prints a program for people.
"""
