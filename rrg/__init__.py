"""The domain of chest X-ray report generation: studies and images (`rrg.data`), the LM-RRG model (`rrg.model`)."""
