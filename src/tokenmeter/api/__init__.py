"""The module-level face: one default meter, and the functions that read it, by subject.

Every function takes ``meter=``; without it the default meter is used, built from the settings at its first use.
"""
