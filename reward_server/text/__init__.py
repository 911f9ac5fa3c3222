"""What the `embedded` backend reads out of a report: words, statements, labels, encodings. No gRPC here."""
