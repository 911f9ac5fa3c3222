"""`python -m reward_server serve|score|describe|gallery|weights|scale`."""

import sys

from reward_server.cli import main

sys.exit(main())
