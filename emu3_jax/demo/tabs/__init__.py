"""What each tab of the page does, without the page: draw, film, chat, look inside."""
