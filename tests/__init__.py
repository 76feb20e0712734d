"""Tests of Peruse. They mirror the packages; journeys/ tell whole stories, faults/ break things on purpose."""
