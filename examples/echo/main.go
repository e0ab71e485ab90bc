// An echo instance, served by gracehttp.
package main

import (
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"

	"github.com/facebookgo/grace/gracehttp"
	"github.com/labstack/echo/v4"
)

func main() {
	addr := flag.String("addr", ":8080", "Address to listen on.")
	flag.Parse()

	e := echo.New()
	e.POST("/who", func(c echo.Context) error {
		return c.String(http.StatusOK, fmt.Sprintln(os.Getpid()))
	})
	// Instead of e.Start(*addr).
	if err := gracehttp.Serve(&http.Server{Addr: *addr, Handler: e}); err != nil {
		log.Fatal(err)
	}
}
