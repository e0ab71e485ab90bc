package main

import (
	"slices"
	"testing"
	"time"
)

func TestTimeAfterTheLastAnswer(t *testing.T) {
	ended, serving, silent := &generation{pid: 1, gone: 30}, &generation{pid: 2}, &generation{pid: 3, gone: 30}
	target := &target{order: []*generation{ended, serving, silent}, changed: make(chan struct{})}
	target.newest.Store(ended)
	for _, step := range []struct {
		answered, want time.Duration
	}{
		{20, 10},
		{10, 10}, // told later by its client, but earlier
		{28, 2},
		{35, 0}, // read after the process has ended
	} {
		target.answered("1", step.answered)
		if got := target.afterLast(); !slices.Equal(got, []time.Duration{step.want}) {
			t.Errorf("after an answer at %d: %v, want %v", step.answered, got, step.want)
		}
	}
}
