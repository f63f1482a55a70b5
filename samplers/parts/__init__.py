"""What samplers share: schedules, noise, guidance, chunks, resizing."""
