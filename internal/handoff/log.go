package handoff

import (
	"errors"
	"fmt"
	"log"
	"runtime/debug"
	"sync/atomic"
	"time"
)

// maxLines is how many lines may wait to be written.
const maxLines = 1000

// Lines for a log are written by one goroutine, so that a log that blocks, such as a
// pipe that nobody reads, holds up nobody. What does not fit into the queue is counted.
var (
	logging = queue{max: maxLines}
	dropped atomic.Int64
)

// Logf writes a line to a logger, or the standard one, without waiting for it.
func Logf(to *log.Logger, format string, args ...any) {
	if to == nil {
		to = log.Default()
	}
	text := fmt.Sprintf(format, args...)
	missing := dropped.Swap(0)
	if missing > 0 {
		text = fmt.Sprintf("(%d lines are missing here, which the log did not take) ", missing) + text
	}
	if !logging.add("", func() { to.Print(text) }) {
		dropped.Add(missing + 1)
	}
}

// FlushLog waits until all lines are written, but no longer than the timeout.
func FlushLog(timeout time.Duration) { logging.flushWithin(timeout) }

// errExited is why a hook has no result.
var errExited = errors.New("it has called runtime.Goexit")

// Call calls a hook in a goroutine of its own, and closes the channel when it has
// returned, however that was. What it returns, or why it did not, is then in err; a panic
// is logged with its stack.
func Call(to *log.Logger, name string, hook func() error) (done <-chan struct{}, err *error) {
	returned := make(chan struct{})
	result := fmt.Errorf("%s: %w", name, errExited)
	go func() {
		defer close(returned)
		defer func() {
			if r := recover(); r != nil {
				result = fmt.Errorf("%s: panic: %v", name, r)
				Logf(to, "%v\n%s", result, debug.Stack())
			}
		}()
		result = hook()
	}()
	return returned, &result
}
