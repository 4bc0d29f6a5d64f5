package app

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"strconv"
	"time"

	"github.com/stagebench/stagebench/sut/photos"
)

// pagePhotos is how many photos the page shows.
const pagePhotos = 24

//go:embed page.html
var pageHTML string

// contentPolicy lets the page load nothing but what this service serves.
const contentPolicy = "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"

// pageTemplate is the page, with what is the same for everybody.
type pageTemplate struct {
	template *template.Template
	css      string // URLs
	js       string
	icon     string
}

func newPageTemplate(assets map[string]asset) (*pageTemplate, error) {
	parsed, err := template.New("page").Parse(pageHTML)
	if err != nil {
		return nil, fmt.Errorf("parse the page: %w", err)
	}
	url := func(name string) string { return assets[name].url(name) }
	return &pageTemplate{template: parsed, css: url("app.css"), js: url("app.js"), icon: url("icon.svg")}, nil
}

// pageView is what the page shows.
type pageView struct {
	CSS, JS, Icon string
	Node          string
	User          photos.ID // logged in; 0 = nobody
	Degraded      bool      // there is no database, so there are no photos
	Cards         []card
}

// card is one photo on the page.
type card struct {
	ID       string
	Owner    string
	Title    string
	Likes    int64
	Comments int64
	Date     string // for people
	ISODate  string // for machines
	Thumb    string // URLs
	Original string
}

// showPage answers GET /. Without a database it is shown without photos, and
// says so to people as well as in the header.
func (a *App) showPage(ctx context.Context, x *exchange) error {
	newest, err := a.config.Store.Newest(ctx, pagePhotos)
	view := pageView{CSS: a.page.css, JS: a.page.js, Icon: a.page.icon, Node: a.config.Node, User: x.user}
	header, status := x.Header(), http.StatusOK
	if err = a.tierProblem(x, tierDB, "the page", err); err != nil {
		var p *problem
		if !errors.As(err, &p) || p.degraded == "" {
			return err
		}
		a.noteProblem(x, p)
		view.Degraded, status = true, p.status
		x.degrade(p.degraded)
		header.Set("Retry-After", "1")
	}
	for i := range newest {
		view.Cards = append(view.Cards, newCard(&newest[i]))
	}
	var page bytes.Buffer
	if err := a.page.template.Execute(&page, &view); err != nil {
		return fmt.Errorf("render the page: %w", err)
	}
	header.Set("Content-Type", "text/html; charset=utf-8")
	header.Set("Cache-Control", "no-cache")
	header.Set("Content-Security-Policy", contentPolicy)
	header.Set("Content-Length", strconv.Itoa(page.Len()))
	if version := highestVersion(newest); version != 0 {
		header.Set(HeaderRecordVersion, strconv.FormatInt(version, 10))
	}
	x.WriteHeader(status)
	_, _ = x.Write(page.Bytes()) // an error is the client's connection
	return nil
}

func newCard(p *photos.Photo) card {
	id := strconv.FormatInt(int64(p.ID), 10)
	image := "/img/" + id + "/"
	version := ".jpg?v=" + strconv.Itoa(imageVersion)
	created := time.UnixMicro(p.CreatedUS).UTC()
	return card{
		ID: id, Owner: strconv.FormatInt(int64(p.UserID), 10), Title: p.Title, Likes: p.Likes, Comments: p.Comments,
		Date: created.Format("2 Jan 2006"), ISODate: created.Format(time.RFC3339),
		Thumb: image + string(photos.VariantThumb) + version, Original: image + string(photos.VariantOriginal) + version,
	}
}
