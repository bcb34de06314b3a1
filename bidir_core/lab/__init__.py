"""The lab: many regimes on one model and one set of items, controls, and what they say together.

``sweep`` turns a sweep's text into regimes, ``points`` says what each point of a sweep is, ``run``
evaluates them, ``summary`` compares them, ``controls`` asks what could refute the story.
"""
