package handoff

import (
	"errors"
	"fmt"
	"log"
	"runtime"
	"strings"
	"testing"
	"time"
)

// A blockingLog takes a line each time that the test takes it.
type blockingLog chan string

func (l blockingLog) Write(b []byte) (int, error) {
	l <- string(b)
	return len(b), nil
}

// next returns the next line that is written.
func (l blockingLog) next(t *testing.T) string {
	t.Helper()
	select {
	case line := <-l:
		return strings.TrimSuffix(line, "\n")
	case <-time.After(30 * time.Second):
		t.Fatal("no line was written")
		return ""
	}
}

func TestLogThatBlocksHoldsUpNobodyAndIsToldWhatItMissed(t *testing.T) {
	blocked := make(blockingLog)
	to := log.New(blocked, "", 0)
	Logf(to, "first")
	// More than may wait, whether the first one is being written by now or not.
	const tooMany = 5
	for i := range maxLines + tooMany {
		Logf(to, "line %d", i)
	}
	FlushLog(time.Millisecond) // nor does that wait for it
	if line := blocked.next(t); line != "first" {
		t.Fatalf("%q comes first", line)
	}
	for i := range maxLines - 1 {
		if line := blocked.next(t); line != fmt.Sprint("line ", i) {
			t.Fatalf("%q, want line %d: lines are in order", line, i)
		}
	}
	flushed := make(chan struct{})
	go func() {
		defer close(flushed)
		Logf(to, "another %s", "one")
		FlushLog(30 * time.Second)
	}()
	written, missing := maxLines-1, 0
	for line := ""; !strings.HasSuffix(line, "another one"); written++ {
		line = blocked.next(t)
		fmt.Sscanf(line, "(%d lines are missing here", &missing)
	}
	<-flushed
	if written--; written+missing != maxLines+tooMany || missing < tooMany-1 {
		t.Errorf("%d lines were written and %d are said to be missing, of %d", written, missing, maxLines+tooMany)
	}
	Logf(to, "the last")
	if line := blocked.next(t); line != "the last" {
		t.Errorf("%q, want a line with nothing missing before", line)
	}
}

func TestHookThatPanicsOrExitsHasFailed(t *testing.T) {
	var b strings.Builder
	to := log.New(&b, "", 0)
	failure := errors.New("no")
	for what, test := range map[string]struct {
		hook func() error
		want string
	}{
		"return":  {func() error { return nil }, ""},
		"failure": {func() error { return failure }, "no"},
		"panic":   {func() error { panic("at the disco") }, "Hook: panic: at the disco"},
		"exit":    {func() error { runtime.Goexit(); return nil }, "Hook: it has called runtime.Goexit"},
	} {
		done, err := Call(to, "Hook", test.hook)
		select {
		case <-done:
		case <-time.After(30 * time.Second):
			t.Fatalf("%s: it has not returned", what)
		}
		if got := *err; (got == nil) != (test.want == "") || got != nil && got.Error() != test.want {
			t.Errorf("%s: error %v, want %q", what, got, test.want)
		}
	}
	FlushLog(30 * time.Second)
	if s := b.String(); strings.Count(s, "at the disco") != 1 || !strings.Contains(s, "log_test.go") {
		t.Errorf("logged %q, want the panic with its stack", s)
	}
}
