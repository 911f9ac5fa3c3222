"""`python -m reward_server serve|score|describe|gallery|weights|ui|scale`."""

import sys

from reward_server.cli import main

sys.exit(main())
