package main

import (
	"testing"

	"example.com/grace-examples/restarttest"
)

func TestRestartsLoseNothing(t *testing.T) {
	t.Parallel()
	s := restarttest.Start(t)
	s.RestartUnderLoad(5, 8, s.HTTP("/who"))
	s.Stop()
}
