package main

import (
	"context"
	"fmt"
	"time"
)

// A floor is what nothing on this machine can do better, to hold the library against.
type floor struct {
	Start   millis // from starting the program on net/http alone to its first answer, median
	Grace   millis // the same on the library
	Restart millis // from the signal to the new process's first answer, median

	// Two servers on net/http alone against each other.
	KeepAlive, NewConnections comparison
}

func (r *costReport) measureFloor(ctx context.Context, cfg config, plan costPlan) (string, error) {
	var starts [2][]time.Duration // on net/http, on the library
	var restarts []time.Duration
	for range plan.starts {
		for i, plain := range []bool{true, false} {
			t, err := startTarget(ctx, cfg, serverConfig{addr: "127.0.0.1:0", proto: "http", listeners: 1, plain: plain})
			if err != nil {
				return "", err
			}
			defer t.stop(ctx)
			if _, err := getOnce(t.addr, make([]byte, 1024)); err != nil {
				return "", err
			}
			starts[i] = append(starts[i], now()-t.began)
			if !plain {
				one, _, err := t.restartIdle(ctx)
				if err != nil {
					return "", t.withLog(err)
				}
				restarts = append(restarts, one.firstAnswer)
			}
			t.stop(ctx)
		}
	}
	plain, err := compareLoad(ctx, cfg, plan, [2]bool{true, true})
	if err != nil {
		return "", err
	}
	r.Floor = floor{summarize(starts[0]).P50, summarize(starts[1]).P50, summarize(restarts).P50, plain[0], plain[1]}
	return fmt.Sprintf("The floor: medians of %d, in ms\n", plan.starts) +
		fmt.Sprintf("  the program started bare, to its first answer: %v on net/http, %v on gracehttp\n", r.Floor.Start, r.Floor.Grace) +
		fmt.Sprintf("  a restart, from the signal to the first answer: %v\n\n", r.Floor.Restart) +
		plain[0].text("two servers on net/http, keep-alive", "net/http ") + "\n" +
		plain[1].text("two servers on net/http, new connections", "net/http "), nil
}
