// Command facebookgo restarts with the original github.com/facebookgo/grace. SIGUSR2 restarts, SIGTERM stops.
package main

import (
	"log"
	"net/http"
	"os"

	"github.com/facebookgo/grace/gracehttp"

	"peers/echo"
)

func main() {
	if err := gracehttp.Serve(&http.Server{Addr: os.Args[1], Handler: echo.Handler}); err != nil {
		log.Fatal(err)
	}
}
