package handoff

import (
	"context"
	"sync"
	"time"
)

// A queue calls functions one after the other, in a goroutine that ends when none is left:
// so that nobody waits for a log that blocks, or a peer that does not read.
type queue struct {
	max int // how many may wait

	mu      sync.Mutex // guards what follows
	waiting []task
	running bool
}

type task struct {
	key string
	do  func()
}

// add lets do be called after all that waits; or instead of the last of that, if it has
// the same key and the key is not empty. It reports whether there was room.
func (q *queue) add(key string, do func()) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if last := len(q.waiting) - 1; last >= 0 && key != "" && q.waiting[last].key == key {
		q.waiting[last].do = do
		return true
	}
	if len(q.waiting) >= q.max {
		return false
	}
	q.push(task{key, do})
	return true
}

// then lets do be called after all that waits, however much that is.
func (q *queue) then(do func()) {
	q.mu.Lock()
	q.push(task{do: do})
	q.mu.Unlock()
}

// push needs q.mu.
func (q *queue) push(t task) {
	q.waiting = append(q.waiting, t)
	if !q.running {
		q.running = true
		go q.run()
	}
}

func (q *queue) run() {
	for {
		q.mu.Lock()
		if len(q.waiting) == 0 {
			q.running = false
			q.mu.Unlock()
			return
		}
		next := q.waiting[0]
		q.waiting = q.waiting[1:]
		q.mu.Unlock()
		next.do()
	}
}

// flushWithin is flush for no longer than a timeout.
func (q *queue) flushWithin(timeout time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	q.flush(ctx)
}

// flush waits until all that waits now was called, but no longer than ctx.
func (q *queue) flush(ctx context.Context) error {
	done := make(chan struct{})
	q.then(func() { close(done) })
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
