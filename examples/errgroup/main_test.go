package main

import (
	"testing"

	"example.com/grace-examples/restarttest"
)

func TestRestartsLoseNothing(t *testing.T) {
	t.Parallel()
	s := restarttest.Start(t)
	s.RestartUnderLoad(5, 8, s.HTTP("/who"))
	from := s.Mark()
	s.Stop()
	s.Line(from, "the worker has ended")
}

func TestFailureOfTheWorkerStopsTheServer(t *testing.T) {
	t.Parallel()
	s := restarttest.Start(t, "-lifetime", "1s")
	s.WaitEnd()
	s.Line(0, "the worker has failed")
	s.Line(0, "pid .* ends: drained")
}
