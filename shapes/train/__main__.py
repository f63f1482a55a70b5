"""`python -m prior_art.shapes.train`: see :mod:`.run`."""

from .run import main

raise SystemExit(main())
