package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A growth is the time that a restart of one size took.
type growth struct {
	N           int
	FirstAnswer millis // from the signal to the first answer of the new process, median
	Gone        millis // from the signal to the end of the old process, median
	Worst       millis // the longest Gone
	CPU         millis // processor time of both processes for the restart, median
	Lost        int
	Moved       int // connections on which the new process answered

	Meanwhile *summary `json:",omitempty"` // of the answers during other restarts, to a few clients

	times []restart
}

// idleConns are connections that have each had one answer.
type idleConns []net.Conn

func openIdle(ctx context.Context, addr string, n int) (idleConns, error) {
	conns := make(idleConns, n)
	err := inParallel(ctx, n, func(i int, buf []byte) error {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			return err
		}
		conns[i] = conn
		_, err = get(conn, buf, false)
		return err
	})
	return conns, err
}

func (c idleConns) close() {
	for i, conn := range c {
		if conn != nil {
			conn.Close()
			c[i] = nil
		}
	}
}

// use sends a request on each, and counts the answers by the pid of the process that gave them.
func (c idleConns) use(ctx context.Context) (answers map[string]int, lost int, err error) {
	var mu sync.Mutex
	answers = make(map[string]int)
	err = inParallel(ctx, len(c), func(i int, buf []byte) error {
		pid, err := get(c[i], buf, false)
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			lost++
		} else {
			answers[pid]++
		}
		return nil
	})
	return answers, lost, err
}

// useMeanwhile sends requests, on one connection after the other, while do runs, and returns how long the answers took.
func (c idleConns) useMeanwhile(ctx context.Context, do func() error) (took []time.Duration, lost int, err error) {
	const clients = 4
	done, ended := make(chan struct{}), make(chan error)
	var mu sync.Mutex
	go func() {
		ended <- inParallel(ctx, clients, func(client int, buf []byte) error {
			for {
				select {
				case <-time.After(time.Millisecond):
				case <-done:
					return nil
				}
				began := now()
				_, err := get(c[rand.IntN(len(c)/clients)*clients+client], buf, false)
				mu.Lock()
				took = append(took, now()-began)
				if err != nil {
					lost++
				}
				mu.Unlock()
				if err != nil {
					return nil
				}
			}
		})
	}()
	err = do()
	close(done)
	if ended := <-ended; err == nil {
		err = ended
	}
	return took, lost, err
}

// inParallel calls do for 0 to n-1, from a few goroutines with a buffer each, until one returns an error.
func inParallel(ctx context.Context, n int, do func(i int, buf []byte) error) error {
	const workers = 32
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			buf := make([]byte, 1024)
			for i := w; i < n && ctx.Err() == nil; i += workers {
				if err := do(i, buf); err != nil {
					cancel(err)
				}
			}
		}()
	}
	wg.Wait()
	return context.Cause(ctx)
}

// moveIdle restarts servers that hold idle connections, again and again, and uses each of them after each restart.
func (r *costReport) moveIdle(ctx context.Context, cfg config, plan costPlan) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "Restart with idle connections, each used afterwards: medians of %d, in ms from the signal\n", plan.repeats)
	for _, n := range plan.idle {
		g, err := growIdle(ctx, cfg, n, plan.repeats)
		if err != nil {
			return "", err
		}
		r.Moves = append(r.Moves, g)
		fmt.Fprintf(&b, "%s  lost %d\n", g.text("connections"), g.Lost)
		fmt.Fprintf(&b, "%18s  in other restarts, answers to four clients took p50 %.1f  p99 %.1f  max %.1f\n",
			"", g.Meanwhile.P50, g.Meanwhile.P99, g.Meanwhile.Max)
		if g.Lost > 0 {
			r.Failures = append(r.Failures, fmt.Sprintf("%d of %d idle connections lost", g.Lost, n))
		}
	}
	fixed, each := lineOf(r.Moves)
	r.EachMove = each
	fmt.Fprintf(&b, "  grows by %.1f µs for each connection, from %.1f ms\n", each*1000, fixed)
	return b.String(), nil
}

func growIdle(ctx context.Context, cfg config, n, repeats int) (growth, error) {
	g := growth{N: n}
	t, err := startTarget(ctx, cfg, serverConfig{addr: "127.0.0.1:0", proto: "http", listeners: 1})
	if err != nil {
		return g, err
	}
	defer t.stop(ctx)
	conns, err := openIdle(ctx, t.addr, n)
	defer conns.close()
	if err != nil {
		return g, err
	}
	for i := range repeats {
		one, new, err := t.restartIdle(ctx)
		if err != nil {
			return g, t.withLog(fmt.Errorf("%d connections: %w", n, err))
		}
		g.times = append(g.times, one)
		if i == repeats-1 {
			// Longer than the server's ReadHeaderTimeout, whose clock must not start with the move.
			sleep(ctx, readHeaderTimeout+500*time.Millisecond)
		}
		answers, lost, err := conns.use(ctx)
		if err != nil {
			return g, err
		}
		g.Lost += lost
		g.Moved += answers[strconv.Itoa(new.pid)]
		if lost > 0 {
			break
		}
	}
	var took []time.Duration
	for range repeats {
		some, lost, err := conns.useMeanwhile(ctx, func() error {
			_, _, err := t.restartIdle(ctx)
			return err
		})
		if err != nil {
			return g, t.withLog(fmt.Errorf("%d connections, some in use: %w", n, err))
		}
		took, g.Lost = append(took, some...), g.Lost+lost
	}
	s := summarize(took)
	g.Meanwhile = &s
	g.sum()
	return g, nil
}

// moveListeners restarts servers that have many listeners, and connects to each of them after each restart.
func (r *costReport) moveListeners(ctx context.Context, cfg config, plan costPlan) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "Restart with listeners, each connected to afterwards: medians of %d, in ms from the signal\n", plan.repeats)
	for _, n := range plan.listen {
		g, err := growListeners(ctx, cfg, n, plan.repeats)
		if err != nil {
			return "", err
		}
		r.Listeners = append(r.Listeners, g)
		fmt.Fprintf(&b, "%s  lost %d\n", g.text("listeners"), g.Lost)
		if g.Lost > 0 {
			r.Failures = append(r.Failures, fmt.Sprintf("%d of %d listeners did not answer", g.Lost, n))
		}
	}
	fixed, each := lineOf(r.Listeners)
	r.EachListener = each
	fmt.Fprintf(&b, "  grows by %.1f µs for each listener, from %.1f ms\n", each*1000, fixed)
	return b.String(), nil
}

// lineOf returns the line closest to the times by least squares.
func lineOf(all []growth) (fixed, each millis) {
	var n, x, y, xx, xy float64
	for _, g := range all {
		n++
		x += float64(g.N)
		y += float64(g.Gone)
		xx += float64(g.N) * float64(g.N)
		xy += float64(g.N) * float64(g.Gone)
	}
	slope := (n*xy - x*y) / (n*xx - x*x)
	return millis((y - slope*x) / n), millis(slope)
}

func growListeners(ctx context.Context, cfg config, n, repeats int) (growth, error) {
	g := growth{N: n}
	t, err := startTarget(ctx, cfg, serverConfig{addr: "127.0.0.1:0", proto: "http", listeners: n})
	if err != nil {
		return g, err
	}
	defer t.stop(ctx)
	addrs := t.order[0].addrs
	for range repeats {
		one, new, err := t.restartIdle(ctx)
		if err != nil {
			return g, t.withLog(fmt.Errorf("%d listeners: %w", n, err))
		}
		g.times = append(g.times, one)
		var lost atomic.Int64
		err = inParallel(ctx, n, func(i int, buf []byte) error {
			if pid, err := getOnce(addrs[i], buf); err != nil || pid != strconv.Itoa(new.pid) {
				lost.Add(1)
			}
			return nil
		})
		if err != nil {
			return g, err
		}
		g.Lost += int(lost.Load())
	}
	g.sum()
	return g, nil
}

// restartIdle makes a server restart that has nothing else to do, and returns the new process.
func (t *target) restartIdle(ctx context.Context) (restart, *generation, error) {
	// The probe is a connection of its own each time, answered by whoever accepts.
	probe := func() error {
		pid, err := getOnce(t.addr, make([]byte, 1024))
		if err == nil {
			t.answered(pid, now())
		}
		return err
	}
	if err := probe(); err != nil {
		return restart{}, nil, err
	}
	t.mu.Lock()
	known := len(t.order)
	t.mu.Unlock()
	before, err := t.usageOf(ctx, t.newest.Load(), false)
	if err != nil {
		return restart{}, nil, err
	}
	old, at, err := t.signalRestart()
	if err != nil {
		return restart{}, nil, err
	}
	startCtx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	// It has said that it accepts; until the old one stops, the probe may still reach that one.
	accepts := func() bool {
		return len(t.order) > known && len(t.order[known].addrs) >= t.config.listeners
	}
	if err := t.wait(startCtx, "a new process to accept", accepts); err != nil {
		return restart{}, nil, err
	}
	for t.newest.Load() == old {
		if err := probe(); err != nil {
			return restart{}, nil, err
		}
		if err := startCtx.Err(); err != nil {
			return restart{}, nil, fmt.Errorf("waiting for an answer from a new process: %w", err)
		}
	}
	new := t.newest.Load()
	drainCtx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	if err := t.waitGone(drainCtx, old); err != nil {
		return restart{}, nil, err
	}
	after, err := t.usageOf(ctx, new, false)
	one := old.restartAt(at, time.Duration(new.firstAnswer.Load()))
	one.cpu = old.total - before.CPU + after.CPU
	return one, new, err
}

// sum makes medians of the times.
func (g *growth) sum() {
	var ready, gone, cpu []time.Duration
	for _, one := range g.times {
		ready, gone, cpu = append(ready, one.firstAnswer), append(gone, one.gone), append(cpu, one.cpu)
	}
	end := summarize(gone)
	g.FirstAnswer, g.Gone, g.Worst, g.CPU = summarize(ready).P50, end.P50, end.Max, summarize(cpu).P50
}

func (g *growth) text(of string) string {
	return fmt.Sprintf("  %6d %-11s first answer %5.1f  old gone %5.1f (worst %5.1f)  processor time %5.1f",
		g.N, of, g.FirstAnswer, g.Gone, g.Worst, g.CPU)
}
