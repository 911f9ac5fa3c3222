"""`python -m reward_server serve|score|describe`."""

import sys

from reward_server.cli import main

sys.exit(main())
