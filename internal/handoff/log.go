package handoff

import (
	"errors"
	"fmt"
	"log"
	"runtime/debug"
	"sync"
	"time"
)

// Lines for a log are written by one goroutine, so that a log that blocks, such as a
// pipe that nobody reads, holds up nobody. What does not fit into the queue is counted.

// maxLines is how many lines may wait to be written.
const maxLines = 1000

type line struct {
	to   *log.Logger
	text string
}

var logging struct {
	mu      sync.Mutex
	queue   []line
	dropped int
	writing bool
	idle    chan struct{} // closed when all is written; nil: nobody waits
}

// Logf writes a line to a logger, or the standard one, without waiting for it.
func Logf(to *log.Logger, format string, args ...any) {
	if to == nil {
		to = log.Default()
	}
	logging.mu.Lock()
	defer logging.mu.Unlock()
	if len(logging.queue) >= maxLines {
		logging.dropped++
		return
	}
	if logging.dropped > 0 {
		format, logging.dropped = fmt.Sprintf("(%d lines are missing here, which the log did not take) ", logging.dropped)+format, 0
	}
	logging.queue = append(logging.queue, line{to, fmt.Sprintf(format, args...)})
	if !logging.writing {
		logging.writing = true
		go writeLines()
	}
}

func writeLines() {
	for {
		logging.mu.Lock()
		if len(logging.queue) == 0 {
			logging.writing = false
			if logging.idle != nil {
				close(logging.idle)
				logging.idle = nil
			}
			logging.mu.Unlock()
			return
		}
		l := logging.queue[0]
		logging.queue = logging.queue[1:]
		logging.mu.Unlock()
		l.to.Print(l.text)
	}
}

// FlushLog waits until all lines are written, but no longer than the timeout.
func FlushLog(timeout time.Duration) {
	logging.mu.Lock()
	if !logging.writing {
		logging.mu.Unlock()
		return
	}
	if logging.idle == nil {
		logging.idle = make(chan struct{})
	}
	idle := logging.idle
	logging.mu.Unlock()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-idle:
	case <-timer.C:
	}
}

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
