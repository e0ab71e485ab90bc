// Command nethttp restarts by net/http's own recipe, as a service manager's restart does it: Shutdown, then the program
// is started anew. SIGUSR2 restarts, SIGTERM stops.
package main

import (
	"context"
	"log"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"peers/echo"
)

func main() {
	server := &http.Server{Addr: os.Args[1], Handler: echo.Handler}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR2, syscall.SIGTERM)
	go func() {
		if err := server.ListenAndServe(); err != http.ErrServerClosed {
			log.Fatal(err)
		}
	}()
	sig := <-signals
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		log.Print(err)
	}
	if sig == syscall.SIGUSR2 {
		next := exec.Command(os.Args[0], os.Args[1:]...)
		next.Stdout, next.Stderr = os.Stdout, os.Stderr
		if err := next.Start(); err != nil {
			log.Fatal(err)
		}
	}
}
