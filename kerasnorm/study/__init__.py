"""Studies: many runs of one plan, their execution, summary, tables, figures and report."""
