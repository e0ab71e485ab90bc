package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// soakConns are the connections that move with each restart of a soak.
const soakConns = 64

// A soakSample is what a generation holds: medians of some that follow each other.
type soakSample struct {
	Restarts    int
	InUse       int // bytes of heap and stacks, after a collection
	Resident    int // bytes in memory; 0 where the system does not tell
	Descriptors int
	Goroutines  int
	Processes   int // of the server
}

// benchSoak restarts a server many times, and looks whether the generations grow.
func benchSoak(ctx context.Context, cfg config, restarts int) error {
	samples, all, err := runSoak(ctx, cfg, restarts)
	if ctx.Err() != nil {
		return errors.New("interrupted")
	} else if err != nil {
		return err
	}
	return reportSoak(cfg, samples, all)
}

// runSoak uses its connections during and after each restart; a lost request is an error.
func runSoak(ctx context.Context, cfg config, restarts int) (samples []soakSample, all *row, err error) {
	t, err := startTarget(ctx, cfg, serverConfig{addr: "127.0.0.1:0", proto: "http", listeners: 4})
	if err != nil {
		return nil, nil, err
	}
	defer t.stop(ctx)
	conns, err := openIdle(ctx, t.addr, soakConns)
	defer conns.close()
	if err != nil {
		return nil, nil, err
	}
	line := newProgress(cfg)
	defer line.close()
	line.follow("soak", time.Duration(restarts)*100*time.Millisecond, t.soFar)

	all = &row{Requests: soakConns}
	var last []soakSample // of the last restarts
	points := []int{max(1, restarts/100), max(1, restarts/10), max(1, restarts/2), restarts}
	for n := 1; n <= restarts; n++ {
		var new *generation
		took, lost, err := conns.useMeanwhile(ctx, func() error {
			var err error
			_, new, err = t.restartIdle(ctx)
			return err
		})
		if err != nil {
			return nil, nil, t.withLog(fmt.Errorf("restart %d: %w", n, err))
		}
		_, unused, err := conns.use(ctx)
		if err != nil {
			return nil, nil, err
		}
		all.Restarts++
		all.Requests += len(took) + len(conns)
		if all.Lost += lost + unused; all.Lost > 0 {
			return nil, nil, t.withLog(errors.New(verdict([]*row{all})))
		}
		// Only what is looked at is worth a collection.
		i, _ := slices.BinarySearch(points, n)
		if points[i]-n >= 5 {
			continue
		}
		one, err := t.sample(ctx, new, n)
		if err != nil {
			return nil, nil, err
		}
		last = append(last, one)
		if n == points[i] {
			samples = append(samples, middle(last))
			last = nil
		}
	}
	return samples, all, nil
}

func (t *target) sample(ctx context.Context, g *generation, restarts int) (soakSample, error) {
	u, err := t.usageOf(ctx, g, true)
	if err != nil {
		return soakSample{}, err
	}
	alive := len(t.alive())
	if procKnown {
		running, zombies := processGroup(t.cmd.Process.Pid)
		alive = len(running) + len(zombies)
	}
	return soakSample{restarts, int(u.InUse), u.Resident, u.Descriptors, u.Goroutines, alive}, nil
}

func middle(all []soakSample) soakSample {
	median := func(of func(soakSample) int) int {
		var values []int
		for _, s := range all {
			values = append(values, of(s))
		}
		slices.Sort(values)
		return values[len(values)/2]
	}
	return soakSample{
		Restarts:    all[len(all)-1].Restarts,
		InUse:       median(func(s soakSample) int { return s.InUse }),
		Resident:    median(func(s soakSample) int { return s.Resident }),
		Descriptors: median(func(s soakSample) int { return s.Descriptors }),
		Goroutines:  median(func(s soakSample) int { return s.Goroutines }),
		Processes:   median(func(s soakSample) int { return s.Processes }),
	}
}

// growths says what has grown from the first sample to the last: one descriptor is too much, and of memory what a
// collection at another moment does not explain.
func growths(first, last soakSample) (grown []string) {
	for _, v := range []struct {
		what              string
		before, now, free int
	}{
		{"heap and stacks", first.InUse, last.InUse, first.InUse/10 + 256<<10},
		{"resident memory", first.Resident, last.Resident, first.Resident/10 + 1<<20},
		{"descriptors", first.Descriptors, last.Descriptors, 0},
		{"goroutines", first.Goroutines, last.Goroutines, 2},
		{"processes", first.Processes, last.Processes, 0},
	} {
		if v.now > v.before+v.free {
			grown = append(grown, fmt.Sprintf("%s from %s to %s", v.what, thousands(v.before), thousands(v.now)))
		}
	}
	return grown
}

func reportSoak(cfg config, samples []soakSample, all *row) error {
	grown := growths(samples[0], samples[len(samples)-1])
	if cfg.json {
		if err := writeJSON(samples); err != nil {
			return err
		}
	} else {
		fmt.Printf("%d connections on 4 listeners, used during and after each restart; medians of the last 5 processes\n\n", soakConns)
		const format = "%9v %20v %18v %12v %11v %10v\n"
		fmt.Printf(format, "restarts", "heap and stacks, KB", "in memory, KB", "descriptors", "goroutines", "processes")
		for _, s := range samples {
			fmt.Printf(format, thousands(s.Restarts), thousands(s.InUse>>10), thousands(s.Resident>>10), s.Descriptors, s.Goroutines, s.Processes)
		}
		if len(grown) == 0 {
			fmt.Println("\nflat")
		}
		fmt.Println(verdict([]*row{all}))
	}
	if len(grown) > 0 {
		return fmt.Errorf("not flat: %v", grown)
	}
	return nil
}
