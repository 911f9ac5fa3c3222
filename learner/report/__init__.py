"""Pages for people: what a run learnt and wrote (`report.html`), and runs side by side (`learner.compare`)."""
