"""How good generated reports are: measures, intervals, controls, tables. `learner.evaluate` is the command."""
